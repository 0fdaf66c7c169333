package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	api "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// agent is a Workload API that sends what a row sets, and records each call.
type agent struct {
	api.UnimplementedSpiffeWorkloadAPIServer
	mutex      sync.Mutex
	x509       *api.X509SVIDResponse
	x509Bundle []byte
	bundles    map[string][]byte
	tokens     []*api.JWTSVID
	faults     map[string]*fault
	// Streams that were opened before the last end are ended with this status.
	ends    int
	ending  codes.Code
	changed chan struct{}
	calls   []call
	server  *grpc.Server
}

type fault struct {
	code codes.Code
	// The number of failures; below 0: no limit.
	left int
}

type call struct {
	method string
	header bool
	at     time.Time
	code   codes.Code
	asked  proto.Message
}

func (a *agent) change(change func()) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) fail(method string, code codes.Code, times int) {
	a.change(func() { a.faults[method] = &fault{code, times} })
}

func (a *agent) recover() {
	a.change(func() { a.faults = map[string]*fault{} })
}

func (a *agent) endStreams(code codes.Code) {
	a.change(func() { a.ends++; a.ending = code })
}

func (a *agent) recorded(method string) []call {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	var calls []call
	for _, c := range a.calls {
		if method == "" || c.method == method {
			calls = append(calls, c)
		}
	}
	return calls
}

func (a *agent) enter(ctx context.Context, method string, asked proto.Message) error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	header := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io")
	c := call{method: method, header: len(header) == 1 && header[0] == "true", at: time.Now(), asked: asked}
	if f := a.faults[method]; f != nil && f.left != 0 {
		f.left--
		c.code = f.code
	} else if !c.header {
		c.code = codes.InvalidArgument
	}
	a.calls = append(a.calls, c)
	if c.code != codes.OK {
		return status.Error(c.code, "set by the row")
	}
	return nil
}

// stream sends the current state immediately and after each change.
func (a *agent) stream(ctx context.Context, send func() error) error {
	a.mutex.Lock()
	ends := a.ends
	a.mutex.Unlock()
	for {
		a.mutex.Lock()
		changed, ended, code := a.changed, a.ends != ends, a.ending
		a.mutex.Unlock()
		if ended {
			return status.Error(code, "ended by the row")
		}
		if err := send(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *agent) FetchX509SVID(r *api.X509SVIDRequest, s api.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := a.enter(s.Context(), "FetchX509SVID", r); err != nil {
		return err
	}
	return a.stream(s.Context(), func() error {
		a.mutex.Lock()
		message := a.x509
		a.mutex.Unlock()
		return s.Send(message)
	})
}

func (a *agent) FetchX509Bundles(r *api.X509BundlesRequest, s api.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	if err := a.enter(s.Context(), "FetchX509Bundles", r); err != nil {
		return err
	}
	return a.stream(s.Context(), func() error {
		bundles := map[string][]byte{"spiffe://" + domain: a.x509Bundle}
		return s.Send(&api.X509BundlesResponse{Bundles: bundles})
	})
}

func (a *agent) FetchJWTBundles(r *api.JWTBundlesRequest, s api.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	if err := a.enter(s.Context(), "FetchJWTBundles", r); err != nil {
		return err
	}
	return a.stream(s.Context(), func() error {
		a.mutex.Lock()
		message := &api.JWTBundlesResponse{Bundles: a.bundles}
		a.mutex.Unlock()
		return s.Send(message)
	})
}

func (a *agent) FetchJWTSVID(ctx context.Context, r *api.JWTSVIDRequest) (*api.JWTSVIDResponse, error) {
	if err := a.enter(ctx, "FetchJWTSVID", r); err != nil {
		return nil, err
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	answer := &api.JWTSVIDResponse{}
	for _, token := range a.tokens {
		if r.SpiffeId == "" || r.SpiffeId == token.SpiffeId {
			answer.Svids = append(answer.Svids, token)
		}
	}
	return answer, nil
}

// ValidateJWTSVID records the call and fails: harnesses must not validate with the agent.
func (a *agent) ValidateJWTSVID(ctx context.Context, r *api.ValidateJWTSVIDRequest) (*api.ValidateJWTSVIDResponse, error) {
	if err := a.enter(ctx, "ValidateJWTSVID", r); err != nil {
		return nil, err
	}
	return nil, status.Error(codes.Unimplemented, "validation is the client's")
}

func (a *agent) listen(network, address string) (string, error) {
	listener, err := net.Listen(network, address)
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	a.server = grpc.NewServer()
	api.RegisterSpiffeWorkloadAPIServer(a.server, a)
	go a.server.Serve(listener)
	return listener.Addr().String(), nil
}
