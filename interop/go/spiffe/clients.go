package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// clientRows calls net/http and grpc-go servers, which verify tokens with go-spiffe, through the client layer.
func clientRows(driver *driver) {
	endpoint := driver.must("agent", object{"agent": "clients", "trust_domain": domain})["endpoint"].(string)
	driver.must("change", object{"agent": "clients", "what": "register", "id": web})
	driver.must("source", object{"source": "clients", "endpoint": endpoint})
	ctx, stop := withDeadline()
	defer stop()
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(
		workloadapi.WithAddr(endpoint), workloadapi.WithBackoffStrategy(quickly{})))
	if err != nil {
		panic(err)
	}
	defer source.Close()
	caller := func(authorization string) (string, error) {
		token, is := strings.CutPrefix(authorization, "Bearer ")
		if !is {
			return "", errors.New("no bearer token")
		}
		svid, err := jwtsvid.ParseAndValidate(token, source, []string{audience})
		if err != nil {
			return "", err
		}
		return svid.ID.String(), nil
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	web_ := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := caller(r.Header.Get("Authorization"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "%s %s", r.Proto, id)
	})}
	go web_.Serve(listener)
	defer web_.Close()
	url := "http://" + listener.Addr().String() + "/"

	grpcListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "interop.Interop",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Who", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			greeting := new(wrapperspb.StringValue)
			if err := decode(greeting); err != nil {
				return nil, err
			}
			values := metadata.ValueFromIncomingContext(ctx, "authorization")
			if len(values) != 1 {
				return nil, status.Errorf(codes.Unauthenticated, "%d headers", len(values))
			}
			id, err := caller(values[0])
			if err != nil {
				return nil, status.Error(codes.Unauthenticated, err.Error())
			}
			return wrapperspb.String(greeting.Value + " " + id), nil
		}}},
	}, nil)
	go server.Serve(grpcListener)
	defer server.Stop()
	target := "http://" + grpcListener.Addr().String()

	call := func(arguments object) (object, error) {
		all := object{"source": "clients"}
		for name, value := range arguments {
			all[name] = value
		}
		return driver.do("call", all)
	}
	for _, version := range []string{"1", "2"} {
		proto := map[string]string{"1": "HTTP/1.1", "2": "HTTP/2.0"}[version]
		row("go-client-http"+version, "our reqwest client is accepted by net/http and go-spiffe", func() error {
			answer, err := call(object{"url": url, "audience": audience, "http": version})
			if err != nil {
				return err
			}
			return equal("answer", fmt.Sprint(answer["status"], " ", answer["body"]), "200 "+proto+" "+web)
		})
		row("go-client-http"+version+"-other-audience", "our token for another audience is rejected by go-spiffe", func() error {
			answer, err := call(object{"url": url, "audience": "other", "http": version})
			if err != nil {
				return err
			}
			return equal("status", answer["status"], any(401.0))
		})
	}
	row("go-client-grpc", "our tonic client is accepted by grpc-go and go-spiffe", func() error {
		answer, err := call(object{"url": target, "audience": audience, "method": "/interop.Interop/Who"})
		if err != nil {
			return err
		}
		return equal("answer", answer["body"], any("hello "+web))
	})
	row("go-client-grpc-other-audience", "our token for another audience is rejected by go-spiffe", func() error {
		answer, err := call(object{"url": target, "audience": "other", "method": "/interop.Interop/Who"})
		if err != nil {
			return err
		}
		return equal("code", answer["code"], any(float64(codes.Unauthenticated)))
	})
	for _, algorithm := range algorithms {
		row("go-client-rotate-"+string(algorithm), "after a rotation new tokens are accepted", func() error {
			if err := driver.change("clients", "rotate", object{"algorithm": string(algorithm)}); err != nil {
				return err
			}
			// Another set of audiences, so that no cached token is sent.
			answer, err := driver.do("fetch", object{"source": "clients", "audiences": []string{audience, string(algorithm)}})
			if err != nil {
				return err
			}
			return until(func() error {
				id, err := caller(fmt.Sprint("Bearer ", answer["token"]))
				if err != nil {
					return err
				}
				return equal("ID", id, web)
			})
		})
	}
}
