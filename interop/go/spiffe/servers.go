package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// httpClient uses HTTP/1.1, or HTTP/2 without TLS.
func httpClient(version string) *http.Client {
	protocols := new(http.Protocols)
	if version == "2" {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	return &http.Client{Timeout: patience, Transport: &http.Transport{Protocols: protocols}}
}

// reply has the parts of a response that the rows check.
type reply struct {
	status    int
	challenge string
	retry     string
	body      string
}

func get(client *http.Client, method, url, body string, authorization ...string) (reply, error) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	request.Header["Authorization"] = authorization
	response, err := client.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return reply{
		response.StatusCode, response.Header.Get("WWW-Authenticate"), response.Header.Get("Retry-After"), string(text),
	}, err
}

// serverRows calls axum and tonic servers with the layer.
func serverRows(driver *driver, cases []tokenCase) {
	driver.must("agent", object{"agent": "servers", "trust_domain": domain})
	driver.must("federate", object{"agent": "servers", "trust_domain": "example.net"})
	base := "http://" + driver.must("serve", object{"agent": "servers", "kind": "http", "audience": audience})["address"].(string)
	target := driver.must("serve", object{"agent": "servers", "kind": "grpc", "audience": audience})["address"].(string)
	for _, algorithm := range algorithms {
		driver.must("token", object{"issuer": "servers", "id": web, "audience": audience,
			"spec": object{"algorithm": string(algorithm)}})
	}
	clients := map[string]*http.Client{"1": httpClient("1"), "2": httpClient("2")}
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	call := func(method string, authorization ...string) (string, error) {
		ctx, stop := withDeadline()
		defer stop()
		for _, value := range authorization {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", value)
		}
		answer := new(wrapperspb.StringValue)
		err := connection.Invoke(ctx, "/interop.Interop/"+method, wrapperspb.String("hello"), answer)
		return answer.Value, err
	}
	// The source of the servers may not have all keys yet.
	last := driver.must("token", object{"issuer": "servers", "id": web, "audience": audience,
		"spec": object{"algorithm": "PS512"}})["token"].(string)
	if err := until(func() error {
		r, err := get(clients["1"], "GET", base+"/who", "", "Bearer "+last)
		if err != nil {
			return err
		}
		return equal("status", r.status, 200)
	}); err != nil {
		fmt.Println("FAIL go-http-start the server accepts a token:", err)
		failed = true
		return
	}

	for _, c := range cases {
		token, err := driver.token("servers", web, audience, c.Spec)
		if err != nil {
			panic(err)
		}
		id := web
		if sub, is := claim(c.Spec, "sub"); is {
			id = sub
		}
		for _, version := range []string{"1", "2"} {
			row("go-http"+version+"-"+c.Case, "axum's response to net/http", func() error {
				r, err := get(clients[version], "GET", base+"/who", "", "Bearer "+token)
				if err != nil {
					return err
				}
				if c.Rejected == "" {
					return equal("answer", fmt.Sprint(r.status, r.body), fmt.Sprintf(`200{"id":"%s"}`, id))
				}
				if err := equal("status", r.status, 401); err != nil {
					return err
				}
				if !strings.HasPrefix(r.challenge, "Bearer ") || !strings.Contains(r.challenge, `error="invalid_token"`) {
					return fmt.Errorf("the challenge is %q", r.challenge)
				}
				if strings.Contains(r.body, token) || strings.Contains(r.challenge, token) {
					return errors.New("the response contains the token")
				}
				return nil
			})
		}
		row("go-grpc-"+c.Case, "tonic's response to grpc-go", func() error {
			answer, err := call("Who", "Bearer "+token)
			if c.Rejected == "" {
				if err != nil {
					return err
				}
				return equal("answer", answer, "hello "+id)
			}
			return equal("code", status.Code(err), codes.Unauthenticated)
		})
	}

	sign := func(id, issuer string) string {
		token, err := driver.token(issuer, id, audience, object{})
		if err != nil {
			panic(err)
		}
		return token
	}
	good, admin := sign(web, "servers"), sign(ops, "servers")
	foreign := sign("spiffe://example.net/web", "example.net")
	credentials := []struct {
		name   string
		values []string
		status int
		error  string
		code   codes.Code
	}{
		{"none", nil, 401, "", codes.Unauthenticated},
		{"basic", []string{"Basic dXNlcjpwYXNz"}, 401, "", codes.Unauthenticated},
		{"lower-case-scheme", []string{"bearer " + good}, 200, "", codes.OK},
		{"upper-case-scheme", []string{"BEARER " + good}, 200, "", codes.OK},
		{"scheme-alone", []string{"Bearer"}, 400, "invalid_request", codes.Unauthenticated},
		{"token-without-scheme", []string{good}, 401, "", codes.Unauthenticated},
		{"two-tokens", []string{"Bearer " + good, "Bearer " + good}, 400, "invalid_request", codes.Unauthenticated},
		{"two-tokens-in-one", []string{"Bearer " + good + ", Bearer " + good}, 400, "invalid_request", codes.Unauthenticated},
		{"word-after-token", []string{"Bearer " + good + " x"}, 400, "invalid_request", codes.Unauthenticated},
	}
	for _, c := range credentials {
		for _, version := range []string{"1", "2"} {
			row("go-http"+version+"-credential-"+c.name, "axum's response to net/http", func() error {
				r, err := get(clients[version], "GET", base+"/who", "", c.values...)
				if err != nil {
					return err
				}
				if err := equal("status", r.status, c.status); err != nil {
					return err
				}
				if c.status == 200 {
					return nil
				}
				if !strings.HasPrefix(r.challenge, "Bearer ") {
					return fmt.Errorf("the challenge is %q", r.challenge)
				}
				want := ""
				if c.error != "" {
					want = `error="` + c.error + `"`
				}
				if want == "" && strings.Contains(r.challenge, "error=") || !strings.Contains(r.challenge, want) {
					return fmt.Errorf("the challenge is %q", r.challenge)
				}
				return nil
			})
		}
		row("go-grpc-credential-"+c.name, "tonic's response to grpc-go", func() error {
			_, err := call("Who", c.values...)
			return equal("code", status.Code(err), c.code)
		})
	}
	for _, version := range []string{"1", "2"} {
		paths := []struct {
			name, method, path, token string
			status                    int
			body                      string
		}{
			{"policy-denies", "GET", "/ops", good, 403, ""},
			{"foreign-domain", "GET", "/who", foreign, 403, ""},
			{"policy-allows", "GET", "/ops", admin, 200, `{"id":"` + ops + `"}`},
			{"unknown-path", "GET", "/unknown", good, 404, ""},
			{"unknown-path-anonymous", "GET", "/unknown", "", 401, ""},
			{"body", "POST", "/echo", good, 200, "the body"},
			{"body-anonymous", "POST", "/echo", "", 401, ""},
		}
		for _, p := range paths {
			row("go-http"+version+"-"+p.name, "axum's response to net/http", func() error {
				var authorization []string
				if p.token != "" {
					authorization = []string{"Bearer " + p.token}
				}
				r, err := get(clients[version], p.method, base+p.path, "the body", authorization...)
				if err != nil {
					return err
				}
				if p.status == 403 && !strings.Contains(r.challenge, `error="insufficient_scope"`) {
					return fmt.Errorf("the challenge is %q", r.challenge)
				}
				if p.body != "" {
					if err := equal("body", r.body, p.body); err != nil {
						return err
					}
				}
				return equal("status", r.status, p.status)
			})
		}
	}
	methods := []struct {
		name, method, token string
		code                codes.Code
	}{
		{"policy-denies", "Ops", good, codes.PermissionDenied},
		{"policy-allows", "Ops", admin, codes.OK},
		{"unlisted-method", "Unlisted", good, codes.PermissionDenied},
		{"unlisted-method-anonymous", "Unlisted", "", codes.Unauthenticated},
		{"public-method", "Version", "", codes.OK},
		{"public-method-bad-token", "Version", "x.y.z", codes.Unauthenticated},
	}
	for _, m := range methods {
		row("go-grpc-"+m.name, "tonic's response to grpc-go", func() error {
			var authorization []string
			if m.token != "" {
				authorization = []string{"Bearer " + m.token}
			}
			_, err := call(m.method, authorization...)
			return equal("code", status.Code(err), m.code)
		})
	}
	stream := func(method, token string) (grpc.ClientStream, context.CancelFunc, error) {
		ctx, stop := withDeadline()
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/interop.Interop/"+method)
		if err == nil {
			err = stream.SendMsg(wrapperspb.String("hello"))
		}
		if err == nil {
			err = stream.CloseSend()
		}
		return stream, stop, err
	}
	read := func(stream grpc.ClientStream) ([]string, error) {
		var all []string
		for {
			message := new(wrapperspb.StringValue)
			if err := stream.RecvMsg(message); err != nil {
				return all, err
			}
			all = append(all, message.Value)
		}
	}
	row("go-grpc-stream", "a tonic stream arrives completely", func() error {
		s, stop, err := stream("List", good)
		defer stop()
		if err != nil {
			return err
		}
		all, err := read(s)
		if err != io.EOF {
			return err
		}
		return equal("messages", strings.Join(all, " "), "first second "+web)
	})
	row("go-grpc-stream-rejected", "a rejected stream is Unauthenticated", func() error {
		s, stop, err := stream("List", "x.y.z")
		defer stop()
		if err != nil {
			return err
		}
		_, err = read(s)
		return equal("code", status.Code(err), codes.Unauthenticated)
	})
	row("go-grpc-stream-expires", "a stream ends with its token", func() error {
		// The leeway is 10 s: 8 s past the expiry leaves 1 to 2 s.
		token, err := driver.token("servers", web, audience, object{"exp_in": -8, "iat_in": -60})
		if err != nil {
			return err
		}
		s, stop, err := stream("Wait", token)
		defer stop()
		if err != nil {
			return err
		}
		all, err := read(s)
		if err := equal("messages", strings.Join(all, " "), "first"); err != nil {
			return err
		}
		return equal("code", status.Code(err), codes.Unauthenticated)
	})
	row("go-grpc-foreign-domain", "a federated caller that the policy denies is PermissionDenied", func() error {
		_, err := call("Who", "Bearer "+foreign)
		return equal("code", status.Code(err), codes.PermissionDenied)
	})
	row("go-http-many", "200 concurrent requests over one HTTP/2 connection", func() error {
		results := make(chan error, 200)
		for i := range 200 {
			go func() {
				token, want := good, 200
				if i%2 == 1 {
					token, want = "x.y.z", 401
				}
				r, err := get(clients["2"], "GET", base+"/who", "", "Bearer "+token)
				if err == nil {
					err = equal("status", r.status, want)
				}
				results <- err
			}()
		}
		var all error
		for range 200 {
			all = errors.Join(all, <-results)
		}
		return all
	})

	driver.must("change", object{"agent": "servers", "what": "withdraw"})
	row("go-http-withdrawn", "without usable bundles the response is 503 with Retry-After", func() error {
		return until(func() error {
			r, err := get(clients["1"], "GET", base+"/who", "", "Bearer "+good)
			if err != nil {
				return err
			}
			if r.retry == "" {
				return errors.New("Retry-After is missing")
			}
			return equal("status", r.status, 503)
		})
	})
	row("go-grpc-withdrawn", "without usable bundles the code is Unavailable", func() error {
		_, err := call("Who", "Bearer "+good)
		return equal("code", status.Code(err), codes.Unavailable)
	})
	driver.must("change", object{"agent": "servers", "what": "restore"})
	row("go-http-restored", "after a restoration callers are accepted again", func() error {
		return until(func() error {
			r, err := get(clients["1"], "GET", base+"/who", "", "Bearer "+good)
			if err != nil {
				return err
			}
			return equal("status", r.status, 200)
		})
	})
	row("go-grpc-restored", "after a restoration callers are accepted again", func() error {
		return until(func() error {
			_, err := call("Who", "Bearer "+good)
			return err
		})
	})
}
