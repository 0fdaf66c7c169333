// Sends requests with bodies that the server rejects, over keep-alive connections, and counts the
// lost rejections: one row for each path, size and transfer encoding.
//
//	go run . http://127.0.0.1:1234
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
)

const requests = 100

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "missing argument: the server's base URL; run interop/rejections.sh")
		os.Exit(2)
	}
	failed := false
	for _, path := range []string{"/layer", "/extractor"} {
		for _, size := range []int{1, 8 << 10, 60_000, 64 << 10} {
			for _, chunked := range []bool{false, true} {
				lost, first := send(os.Args[1]+path, size, chunked)
				row := fmt.Sprintf("e11-go-%s-%d", path[1:], size)
				if chunked {
					row += "-chunked"
				}
				if lost == 0 {
					fmt.Printf("ok %s 0 of %d rejections lost\n", row, requests)
				} else {
					fmt.Printf("FAIL %s %d of %d rejections lost: %v\n", row, lost, requests, first)
					failed = true
				}
			}
		}
	}
	if failed {
		os.Exit(1)
	}
}

func send(url string, size int, chunked bool) (lost int, first error) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for range requests {
		if err := one(client, url, size, chunked); err != nil {
			lost++
			if first == nil {
				first = err
			}
		}
	}
	return lost, first
}

func one(client *http.Client, url string, size int, chunked bool) error {
	var body io.Reader = bytes.NewReader(make([]byte, size))
	if chunked {
		// net/http sends a reader of an unknown type without a length.
		body = struct{ io.Reader }{body}
	}
	request, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusUnauthorized {
		return fmt.Errorf("unexpected status: %s", response.Status)
	}
	return nil
}
