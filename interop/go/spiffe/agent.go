package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// quickly replaces go-spiffe's backoff, which starts at 1 s.
type quickly struct{}

func (quickly) NewBackoff() workloadapi.Backoff { return quickly{} }
func (quickly) Next() time.Duration             { return 20 * time.Millisecond }
func (quickly) Reset()                          {}

// watcher keeps the last bundles and the errors.
type watcher struct {
	updates chan *jwtbundle.Set
	errors  chan error
}

func (w watcher) OnJWTBundlesUpdate(set *jwtbundle.Set) { w.updates <- set }
func (w watcher) OnJWTBundlesWatchError(err error) {
	select {
	case w.errors <- err:
	default:
	}
}

func (w watcher) update() (*jwtbundle.Set, error) {
	select {
	case set := <-w.updates:
		return set, nil
	case <-time.After(patience):
		return nil, errors.New("no update received")
	}
}

// failure waits for an error with this code. Other errors may come before it.
func (w watcher) failure(code codes.Code) error {
	deadline := time.After(patience)
	var last error
	for {
		select {
		case last = <-w.errors:
			if status.Code(last) == code {
				return nil
			}
		case <-deadline:
			return fmt.Errorf("the watch reported %v, expected %v", last, code)
		}
	}
}

// agentRows runs go-spiffe's client and source on the embedded agent.
func agentRows(driver *driver, transport string) {
	agent := "agent-" + transport
	name := func(row string) string { return "go-agent-" + transport + "-" + row }
	started := driver.must("agent", object{"agent": agent, "trust_domain": domain, "transport": transport})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := workloadapi.New(ctx,
		workloadapi.WithAddr(started["endpoint"].(string)), workloadapi.WithBackoffStrategy(quickly{}))
	if err != nil {
		panic(err)
	}
	defer client.Close()
	var source *workloadapi.JWTSource
	row(name("start"), "JWTSource starts on our agent", func() error {
		within, stop := withDeadline()
		defer stop()
		source, err = workloadapi.NewJWTSource(within, workloadapi.WithClient(client))
		return err
	})
	if source == nil {
		return
	}
	defer source.Close()
	for _, entry := range [][2]string{{web, "internal"}, {ops, "external"}, {"spiffe://example.org/db", ""}} {
		driver.must("change", object{"agent": agent, "what": "register", "id": entry[0], "hint": entry[1]})
	}
	fetch := func(params jwtsvid.Params) (*jwtsvid.SVID, error) {
		within, stop := withDeadline()
		defer stop()
		return source.FetchJWTSVID(within, params)
	}
	verified := func(token, id string) error {
		svid, err := jwtsvid.ParseAndValidate(token, source, []string{audience})
		if err != nil {
			return err
		}
		return equal("ID", svid.ID.String(), id)
	}
	params := jwtsvid.Params{Audience: audience}

	row(name("fetch"), "FetchJWTSVID returns a token that JWTSource's bundles verify", func() error {
		svid, err := fetch(params)
		if err != nil {
			return err
		}
		return verified(svid.Marshal(), web)
	})
	row(name("fetch-all"), "FetchJWTSVIDs returns each identity with its hint", func() error {
		within, stop := withDeadline()
		defer stop()
		svids, err := source.FetchJWTSVIDs(within, params)
		if err != nil {
			return err
		}
		var got []string
		for _, svid := range svids {
			got = append(got, svid.ID.Path()+" "+svid.Hint)
		}
		return equal("identities", strings.Join(got, ","), "/web internal,/ops external,/db ")
	})
	row(name("fetch-subject"), "Params.Subject selects the identity", func() error {
		svid, err := fetch(jwtsvid.Params{Audience: audience, Subject: spiffeid.RequireFromString(ops)})
		if err != nil {
			return err
		}
		return verified(svid.Marshal(), ops)
	})
	row(name("fetch-unregistered"), "an unregistered subject is PermissionDenied", func() error {
		_, err := fetch(jwtsvid.Params{Audience: audience, Subject: spiffeid.RequireFromString("spiffe://example.org/unknown")})
		return equal("code", status.Code(err), codes.PermissionDenied)
	})
	row(name("fetch-audiences"), "extra audiences are in the token", func() error {
		svid, err := fetch(jwtsvid.Params{Audience: audience, ExtraAudiences: []string{"b", "c"}})
		if err != nil {
			return err
		}
		return equal("audiences", fmt.Sprint(svid.Audience), fmt.Sprint([]string{audience, "b", "c"}))
	})
	row(name("fetch-again"), "the agent caches the token, as SPIRE's does", func() error {
		first, err := fetch(params)
		if err != nil {
			return err
		}
		second, err := fetch(params)
		if err != nil {
			return err
		}
		return equal("the same token", first.Marshal() == second.Marshal(), true)
	})

	validations := []struct {
		name, audience string
		spec           object
		code           codes.Code
	}{
		{"good", audience, object{}, codes.OK},
		{"other-audience", "other", object{}, codes.InvalidArgument},
		{"expired", audience, object{"exp_in": -120}, codes.InvalidArgument},
		{"forged", audience, object{"forged": true}, codes.InvalidArgument},
		{"malformed", audience, object{"literal": "secret"}, codes.InvalidArgument},
		{"alg-none", audience, object{"header": object{"alg": "none"}, "signature": ""}, codes.InvalidArgument},
	}
	for _, v := range validations {
		row(name("validate-"+v.name), "ValidateJWTSVID's result from our agent", func() error {
			token, err := driver.token(agent, web, audience, v.spec)
			if err != nil {
				return err
			}
			within, stop := withDeadline()
			defer stop()
			svid, err := client.ValidateJWTSVID(within, token, v.audience)
			if v.code != codes.OK {
				return equal("code", status.Code(err), v.code)
			}
			if err != nil {
				return err
			}
			return equal("ID", svid.ID.String(), web)
		})
	}
	row(name("x509"), "FetchX509SVID is Unimplemented", func() error {
		within, stop := withDeadline()
		defer stop()
		_, err := client.FetchX509SVID(within)
		return equal("code", status.Code(err), codes.Unimplemented)
	})
	row(name("wit"), "FetchWITSVID is Unimplemented", func() error {
		within, stop := withDeadline()
		defer stop()
		_, err := client.FetchWITSVID(within, web)
		return equal("code", status.Code(err), codes.Unimplemented)
	})

	kids := func() (map[string]bool, error) {
		bundle, err := source.GetJWTBundleForTrustDomain(trustDomain)
		if err != nil {
			return nil, err
		}
		all := map[string]bool{}
		for kid := range bundle.JWTAuthorities() {
			all[kid] = true
		}
		return all, nil
	}
	row(name("bundle"), "JWTSource has the agent's keys", func() error {
		keys, err := driver.do("keys", object{"issuer": agent})
		if err != nil {
			return err
		}
		has, err := kids()
		if err != nil {
			return err
		}
		for _, kid := range keys["kids"].([]any) {
			if !has[kid.(string)] {
				return fmt.Errorf("key %v is missing", kid)
			}
		}
		return equal("number of keys", len(has), len(keys["kids"].([]any)))
	})
	for _, algorithm := range algorithms {
		row(name("rotate-"+string(algorithm)), "the source follows a rotation, old tokens stay valid", func() error {
			old, err := fetch(params)
			if err != nil {
				return err
			}
			answer, err := driver.do("change", object{"agent": agent, "what": "rotate", "algorithm": string(algorithm)})
			if err != nil {
				return err
			}
			if err := until(func() error {
				has, err := kids()
				if err != nil {
					return err
				}
				return equal("new key has arrived", has[answer["kid"].(string)], true)
			}); err != nil {
				return err
			}
			if err := verified(old.Marshal(), web); err != nil {
				return fmt.Errorf("the old token: %w", err)
			}
			fresh, err := fetch(jwtsvid.Params{Audience: audience, ExtraAudiences: []string{string(algorithm)}})
			if err != nil {
				return err
			}
			return verified(fresh.Marshal(), web)
		})
	}
	row(name("revoke"), "a revoked key is removed, and its tokens are rejected", func() error {
		token, err := driver.token(agent, web, audience, object{})
		if err != nil {
			return err
		}
		if err := verified(token, web); err != nil {
			return err
		}
		parsed, err := driver.do("keys", object{"issuer": agent})
		if err != nil {
			return err
		}
		all := parsed["kids"].([]any)
		kid := all[len(all)-1].(string)
		if err := driver.change(agent, "rotate", object{}); err != nil {
			return err
		}
		if err := driver.change(agent, "revoke", object{"kid": kid}); err != nil {
			return err
		}
		return until(func() error {
			if err := verified(token, web); err == nil {
				return errors.New("the token is still accepted")
			}
			return nil
		})
	})
	foreign := spiffeid.RequireTrustDomainFromString("example.com")
	row(name("federate"), "a federated bundle arrives and verifies", func() error {
		if err := driver.federate(agent, "example.com"); err != nil {
			return err
		}
		return until(func() error {
			bundle, err := source.GetJWTBundleForTrustDomain(foreign)
			if err != nil {
				return err
			}
			return equal("number of keys", len(bundle.JWTAuthorities()), 1)
		})
	})
	row(name("unfederate"), "a bundle that is no longer federated is removed", func() error {
		if err := driver.change(agent, "unfederate", object{"trust_domain": "example.com"}); err != nil {
			return err
		}
		return until(func() error {
			if _, err := source.GetJWTBundleForTrustDomain(foreign); err == nil {
				return errors.New("the bundle is still present")
			}
			return nil
		})
	})

	watch := watcher{make(chan *jwtbundle.Set, 100), make(chan error, 100)}
	go client.WatchJWTBundles(ctx, watch)
	row(name("watch"), "WatchJWTBundles gets the bundles", func() error {
		set, err := watch.update()
		if err != nil {
			return err
		}
		return equal("number of bundles", set.Len(), 1)
	})
	recovers := func(row_, what string, code codes.Code, break_, restore func() error, fetchCode codes.Code) {
		row(name(row_), what, func() error {
			for len(watch.updates) > 0 {
				<-watch.updates
			}
			for len(watch.errors) > 0 {
				<-watch.errors
			}
			if err := break_(); err != nil {
				return err
			}
			if err := watch.failure(code); err != nil {
				return err
			}
			if fetchCode != codes.OK {
				// Another audience, so that no cached token is returned.
				if err := until(func() error {
					_, err := fetch(jwtsvid.Params{Audience: "uncached"})
					return equal("code", status.Code(err), fetchCode)
				}); err != nil {
					return err
				}
			}
			if err := restore(); err != nil {
				return err
			}
			if _, err := watch.update(); err != nil {
				return err
			}
			return until(func() error {
				svid, err := fetch(params)
				if err != nil {
					return err
				}
				return verified(svid.Marshal(), web)
			})
		})
	}
	change := func(what string, arguments object) func() error {
		return func() error { return driver.change(agent, what, arguments) }
	}
	nothing := func() error { return nil }
	recovers("withdraw", "the watch follows a withdrawal and a restoration", codes.PermissionDenied,
		change("withdraw", nil), change("restore", nil), codes.PermissionDenied)
	recovers("stop", "the watch follows an agent that stops and starts", codes.Unavailable,
		change("stop", nil), change("start", nil), codes.Unavailable)
	recovers("restart", "the watch follows a restarted agent", codes.Unavailable,
		change("restart", nil), nothing, codes.OK)
	recovers("cut", "the watch reconnects after closed connections", codes.Unavailable,
		change("cut", nil), nothing, codes.OK)
	for _, code := range []codes.Code{
		codes.Unavailable, codes.PermissionDenied, codes.Internal, codes.ResourceExhausted,
		codes.Unauthenticated, codes.DeadlineExceeded, codes.FailedPrecondition, codes.Unknown,
	} {
		fault := object{"fault": "refuse", "code": int(code)}
		recovers("status-"+code.String(), "the status is returned, the client recovers", code,
			change("fail", fault), change("recover", nil), code)
	}
	row(name("garbage"), "a malformed token is an error, and the agent recovers", func() error {
		if err := driver.change(agent, "fail", object{"fault": "garbage", "call": "fetch_svid"}); err != nil {
			return err
		}
		if _, err := fetch(params); err == nil {
			return errors.New("go-spiffe accepted it")
		}
		if err := driver.change(agent, "recover", nil); err != nil {
			return err
		}
		_, err := fetch(params)
		return err
	})
	row(name("hang"), "a call to a silent agent exceeds the deadline", func() error {
		if err := driver.change(agent, "fail", object{"fault": "hang", "call": "fetch_svid"}); err != nil {
			return err
		}
		within, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		defer stop()
		_, err := source.FetchJWTSVID(within, params)
		if err := driver.change(agent, "recover", nil); err != nil {
			return err
		}
		return equal("code", status.Code(err), codes.DeadlineExceeded)
	})
	row(name("many-sources"), "20 concurrent sources follow a rotation", func() error {
		within, stop := withDeadline()
		defer stop()
		var sources []*workloadapi.JWTSource
		for range 20 {
			one, err := workloadapi.NewJWTSource(within, workloadapi.WithClientOptions(
				workloadapi.WithAddr(started["endpoint"].(string)), workloadapi.WithBackoffStrategy(quickly{})))
			if err != nil {
				return err
			}
			defer one.Close()
			sources = append(sources, one)
		}
		answer, err := driver.do("change", object{"agent": agent, "what": "rotate"})
		if err != nil {
			return err
		}
		for _, one := range sources {
			if err := until(func() error {
				bundle, err := one.GetJWTBundleForTrustDomain(trustDomain)
				if err != nil {
					return err
				}
				return equal("new key has arrived", bundle.HasJWTAuthority(answer["kid"].(string)), true)
			}); err != nil {
				return err
			}
		}
		return nil
	})
	row(name("no-goaway"), "the agent closes no connection because of too many pings", func() error {
		counts, err := driver.do("counts", object{"agent": agent})
		if err != nil {
			return err
		}
		return equal("connections closed", counts["too_many_pings"], any(0.0))
	})
}

// rawAgentRows makes calls that go-spiffe does not support.
func rawAgentRows(driver *driver) {
	started := driver.must("agent", object{"agent": "raw", "trust_domain": domain, "transport": "tcp"})
	address := strings.TrimPrefix(started["endpoint"].(string), "tcp://")
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	client := workload.NewSpiffeWorkloadAPIClient(connection)
	token, err := driver.token("raw", web, audience, object{})
	if err != nil {
		panic(err)
	}
	calls := []struct {
		name string
		call func(context.Context) error
	}{
		{"FetchJWTSVID", func(ctx context.Context) error {
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{audience}})
			return err
		}},
		{"FetchJWTBundles", func(ctx context.Context) error {
			stream, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}},
		{"ValidateJWTSVID", func(ctx context.Context) error {
			_, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: token})
			return err
		}},
	}
	headers := []struct {
		name   string
		values []string
		code   codes.Code
	}{
		{"header", []string{"workload.spiffe.io", "true"}, codes.OK},
		{"no-header", nil, codes.InvalidArgument},
		{"false-header", []string{"workload.spiffe.io", "false"}, codes.InvalidArgument},
		{"empty-header", []string{"workload.spiffe.io", ""}, codes.InvalidArgument},
		{"upper-case-header", []string{"workload.spiffe.io", "TRUE"}, codes.InvalidArgument},
		{"two-headers", []string{"workload.spiffe.io", "true", "workload.spiffe.io", "true"}, codes.InvalidArgument},
	}
	for _, call := range calls {
		for _, header := range headers {
			row("go-raw-"+call.name+"-"+header.name, "the security header is required, as in SPIRE", func() error {
				ctx, stop := withDeadline()
				defer stop()
				ctx = metadata.AppendToOutgoingContext(ctx, header.values...)
				return equal("code", status.Code(call.call(ctx)), header.code)
			})
		}
	}
	requests := []struct {
		name string
		call func(context.Context) error
		code codes.Code
	}{
		{"no-audience", func(ctx context.Context) error {
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{})
			return err
		}, codes.InvalidArgument},
		{"malformed-id", func(ctx context.Context) error {
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "web"})
			return err
		}, codes.InvalidArgument},
		{"validate-no-audience", func(ctx context.Context) error {
			_, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Svid: token})
			return err
		}, codes.InvalidArgument},
		{"validate-no-token", func(ctx context.Context) error {
			_, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a"})
			return err
		}, codes.InvalidArgument},
		{"unknown-method", func(ctx context.Context) error {
			return connection.Invoke(ctx, "/SpiffeWorkloadAPI/Unknown", &workload.JWTSVIDRequest{}, &workload.JWTSVIDResponse{})
		}, codes.Unimplemented},
		{"unknown-service", func(ctx context.Context) error {
			return connection.Invoke(ctx, "/unknown.Service/Unknown", &workload.JWTSVIDRequest{}, &workload.JWTSVIDResponse{})
		}, codes.Unimplemented},
	}
	for _, request := range requests {
		row("go-raw-"+request.name, "the status is SPIRE's", func() error {
			ctx, stop := withDeadline()
			defer stop()
			ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
			return equal("code", status.Code(request.call(ctx)), request.code)
		})
	}
	row("go-raw-claims", "ValidateJWTSVID returns the claims, aud as a list", func() error {
		token, err := driver.token("raw", web, audience, object{"claims": object{"aud": audience, "n": 1.5}})
		if err != nil {
			return err
		}
		ctx, stop := withDeadline()
		defer stop()
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
		answer, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: token})
		if err != nil {
			return err
		}
		claims := answer.Claims.AsMap()
		if err := equal("n", claims["n"], any(1.5)); err != nil {
			return err
		}
		list, _ := claims["aud"].([]any)
		return equal("aud is a list with the audience", slices.Contains(list, any(audience)), true)
	})
	row("go-raw-bundle-names", "bundles are named by SPIFFE ID, as in SPIRE", func() error {
		ctx, stop := withDeadline()
		defer stop()
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
		stream, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
		if err != nil {
			return err
		}
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		_, is := message.Bundles["spiffe://example.org"]
		return equal("spiffe://example.org is present", is, true)
	})
}
