#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_spiffe_fuzz_checks::https_response(data));
