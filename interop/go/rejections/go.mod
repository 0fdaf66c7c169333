module tower-spiffe/interop/rejections

go 1.24
