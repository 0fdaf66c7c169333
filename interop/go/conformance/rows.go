package main

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	api "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const (
	other  = "other.example.org"
	theirs = "spiffe://" + other + "/workload"
)

func add(id, what string, run func(*env) error) {
	rows = append(rows, row{id: id, what: what, run: run})
}

// accepted and rejected add rows for one token.
func accepted(id, what, sub string, token func(*env) string) {
	add(id, what, func(e *env) error { return e.accepts(token(e), sub) })
}

func rejected(id, what string, token func(*env) string) {
	add(id, what, func(e *env) error { return e.rejects(token(e)) })
}

func claim(changes object) func(*env) string {
	return func(e *env) string { return e.key.sign(nil, with(claims(workload), changes)) }
}

func header(changes object) func(*env) string {
	return func(e *env) string { return e.key.sign(changes, claims(workload)) }
}

func valid(e *env) []string { return strings.Split(e.key.sign(nil, claims(workload)), ".") }

func init() {
	tokenRows()
	idRows()
	bundleRows()
	fetchRows()
	endpointRows()
	workloadRows()
	x509Rows()
}

func tokenRows() {
	accepted("JV-1", "a valid token", workload, claim(nil))
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"} {
		add("JV-2/"+alg, "a token of "+alg, func(e *env) error {
			if err := e.accepts(claim(nil)(e), workload); err != nil {
				return err
			}
			key := newKey(alg, "key-2")
			e.serve(map[string][]*jwtKey{domain: {e.key, key}})
			return e.accepts(key.sign(nil, claims(workload)), workload)
		})
	}
	rejected("JV-3", "alg none", func(e *env) string {
		return part(object{"alg": "none", "kid": "key-1", "typ": "JWT"}) + "." + part(claims(workload)) + "."
	})
	hashes := map[string]crypto.Hash{"HS256": crypto.SHA256, "HS384": crypto.SHA384, "HS512": crypto.SHA512}
	for _, alg := range []string{"HS256", "HS384", "HS512"} {
		for _, public := range []bool{false, true} {
			name := "JV-4/" + alg
			if public {
				name += "-public-key"
			}
			rejected(name, "HMAC by "+alg, func(e *env) string {
				secret := []byte(rand.Text())
				if public {
					der := must(x509.MarshalPKIXPublicKey(e.key.signer.Public()))
					secret = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
				}
				input := part(object{"alg": alg, "kid": "key-1", "typ": "JWT"}) + "." + part(claims(workload))
				mac := hmac.New(hashes[alg].New, secret)
				mac.Write([]byte(input))
				return input + "." + base64url(mac.Sum(nil))
			})
		}
	}
	add("JV-5", "EdDSA with a key in the bundle", func(e *env) error {
		if err := e.accepts(claim(nil)(e), workload); err != nil {
			return err
		}
		ed, last := newKey("EdDSA", "ed"), newKey("ES256", "key-2")
		e.serve(map[string][]*jwtKey{domain: {e.key, ed, last}})
		if err := e.accepts(last.sign(nil, claims(workload)), workload); err != nil {
			return fmt.Errorf("a key beside the Ed25519 key: %w", err)
		}
		return e.rejectsNow(ed.sign(nil, claims(workload)))
	})
	for _, alg := range []string{"RS256", "ES384"} {
		rejected("JV-6/"+alg, alg+" with a P-256 key", header(object{"alg": alg}))
	}
	rejected("JV-7", "no aud", claim(object{"aud": nil}))
	rejected("JV-8", "another aud", claim(object{"aud": []string{"other"}}))
	accepted("JV-9", "the aud among others", workload, claim(object{"aud": []string{"other", audience}}))
	accepted("JV-10", "the aud as a string", workload, claim(object{"aud": audience}))
	rejected("JV-11", "no exp", claim(object{"exp": nil}))
	rejected("JV-12", "expired", claim(object{"iat": time.Now().Unix() - 600, "exp": time.Now().Unix() - 300}))
	rejected("JV-13", "nbf in the future", claim(object{"nbf": time.Now().Unix() + 300}))
	rejected("JV-14", "a flipped bit of the signature", func(e *env) string {
		input := signed(e)
		signature := e.key.signature(input)
		signature[len(signature)/2] ^= 1
		return input + "." + base64url(signature)
	})
	rejected("JV-15", "a changed sub", func(e *env) string {
		parts := valid(e)
		parts[1] = part(claims("spiffe://" + domain + "/admin"))
		return strings.Join(parts, ".")
	})
	rejected("JV-16", "a key that is not in the bundle", func(*env) string {
		return newKey("ES256", "key-2").sign(nil, claims(workload))
	})
	add("JV-17", "a key of another trust domain", func(e *env) error {
		if err := e.accepts(claim(nil)(e), workload); err != nil {
			return err
		}
		key := newKey("ES256", "other-1")
		e.serve(map[string][]*jwtKey{domain: {e.key}, other: {key}})
		if err := e.accepts(key.sign(nil, claims(theirs)), theirs); err != nil {
			return err
		}
		return e.rejectsNow(e.key.sign(nil, claims(theirs)))
	})
	rejected("JV-18", "a trust domain without a bundle", claim(object{"sub": "spiffe://unknown.example.org/web"}))
	rejected("JV-19", "a sub that is not a SPIFFE ID", claim(object{"sub": "https://" + domain + "/web"}))
	accepted("JV-20/JWT", "typ JWT", workload, header(object{"typ": "JWT"}))
	accepted("JV-20/JOSE", "typ JOSE", workload, header(object{"typ": "JOSE"}))
	accepted("JV-20/no-typ", "no typ", workload, header(object{"typ": nil}))
	rejected("JV-21", "another typ", header(object{"typ": "at+jwt"}))
	accepted("JV-22", "no kid", workload, header(object{"kid": nil}))
	rejected("JV-23", "an unknown crit", header(object{"crit": []string{"urn:unknown"}, "urn:unknown": true}))
	rejected("JV-24", "the JSON serialization", func(e *env) string {
		parts := valid(e)
		return string(must(json.Marshal(object{"protected": parts[0], "payload": parts[1], "signature": parts[2]})))
	})
	rejected("JV-25/two-parts", "two parts", signed)
	rejected("JV-25/base64", "a payload that is not base64url", func(e *env) string {
		parts := valid(e)
		return e.key.signInput(parts[0] + "." + parts[1][:8] + "!" + parts[1][8:])
	})
	rejected("JV-25/json", "a payload that is not JSON", func(e *env) string {
		return e.key.signInput(valid(e)[0] + "." + base64url([]byte(`{"sub":`)))
	})
}

// signed returns the signed part of a valid token.
func signed(e *env) string {
	parts := valid(e)
	return parts[0] + "." + parts[1]
}

func idRows() {
	for _, sub := range []string{
		"spiffe:///a", "spiffe://" + domain + ":8080/a", "spiffe://u@" + domain + "/a",
		"spiffe://" + domain + "/a?x=1", "spiffe://" + domain + "/a#f", "spiffe://" + domain + "/%41",
		"spiffe://" + domain + "/a//b", "spiffe://" + domain + "/a/./b", "spiffe://" + domain + "/a/../b",
		"spiffe://" + domain + "/a/", "spiffe://" + domain + "/a!b", "spiffe://t$d/a",
	} {
		rejected("ID-1/"+sub, "an invalid SPIFFE ID", claim(object{"sub": sub}))
	}
	longest := "spiffe://" + domain
	for len(longest)+101 <= 2048 {
		longest += "/" + strings.Repeat("a", 100)
	}
	longest += "/" + strings.Repeat("b", 2047-len(longest))
	ids := map[string]string{
		"path":   "spiffe://" + domain + "/Path.With-Mixed_Case/a.b-c_D/..x/x..",
		"domain": "spiffe://td_1.example-2.org/id-2",
		"ipv4":   "spiffe://192.168.1.1/id-2",
		"length": longest,
	}
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		id := ids[name]
		add("ID-2/"+name, "a valid SPIFFE ID", func(e *env) error {
			if err := e.accepts(claim(nil)(e), workload); err != nil {
				return err
			}
			key := newKey("ES256", "key-2")
			keys := map[string][]*jwtKey{domain: {e.key}}
			name := strings.Split(id, "/")[2]
			keys[name] = append(keys[name], key)
			e.serve(keys)
			return e.accepts(key.sign(nil, claims(id)), id)
		})
	}
}

// push streams these keys, and waits until a token by the barrier key is accepted.
type push = func(keys map[string][]*jwtKey, barrier *jwtKey, sub string) error

// bundleRow waits until the first key is accepted, then runs the row.
func bundleRow(id, what string, run func(*env, push) error) {
	add(id, what, func(e *env) error {
		if err := e.accepts(claim(nil)(e), workload); err != nil {
			return fmt.Errorf("positive control: %w", err)
		}
		return run(e, func(keys map[string][]*jwtKey, barrier *jwtKey, sub string) error {
			e.serve(keys)
			if err := e.accepts(barrier.sign(nil, claims(sub)), sub); err != nil {
				return fmt.Errorf("an update: %w", err)
			}
			return nil
		})
	})
}

func bundleRows() {
	bundleRow("JB-1", "a key that is added", func(e *env, push push) error {
		key := newKey("ES256", "key-2")
		return push(map[string][]*jwtKey{domain: {e.key, key}}, key, workload)
	})
	bundleRow("JB-2", "a key that is removed", func(e *env, push push) error {
		removed, last := newKey("ES256", "key-2"), newKey("ES256", "key-3")
		if err := push(map[string][]*jwtKey{domain: {e.key, removed}}, removed, workload); err != nil {
			return err
		}
		if err := push(map[string][]*jwtKey{domain: {e.key, last}}, last, workload); err != nil {
			return err
		}
		return e.rejectsNow(removed.sign(nil, claims(workload)))
	})
	bundleRow("JB-3", "a trust domain that is removed", func(e *env, push push) error {
		key, last := newKey("ES256", "other-1"), newKey("ES256", "key-2")
		if err := push(map[string][]*jwtKey{domain: {e.key}, other: {key}}, key, theirs); err != nil {
			return err
		}
		if err := push(map[string][]*jwtKey{domain: {e.key, last}}, last, workload); err != nil {
			return err
		}
		return e.rejectsNow(key.sign(nil, claims(theirs)))
	})
	bundleRow("JB-4", "the second of three keys", func(e *env, push push) error {
		one, two, three := newKey("ES256", "key-1"), newKey("ES256", "key-2"), newKey("ES256", "key-3")
		if err := push(map[string][]*jwtKey{domain: {one, two, three}}, three, workload); err != nil {
			return err
		}
		return e.accepts(two.sign(nil, claims(workload)), workload)
	})
	for _, use := range []string{"x509-svid", ""} {
		id := "JB-5/x509-svid-use"
		if use == "" {
			id = "JB-5/missing-use"
		}
		bundleRow(id, fmt.Sprintf("a key of use %q", use), func(e *env, push push) error {
			bad, last := newKey("ES256", "key-2"), newKey("ES256", "key-3")
			bad.use = use
			if err := push(map[string][]*jwtKey{domain: {e.key, bad, last}}, last, workload); err != nil {
				return err
			}
			return e.rejectsNow(bad.sign(nil, claims(workload)))
		})
	}
	bundleRow("JB-6", "a key of an unknown type", func(e *env, _ push) error {
		last := newKey("ES256", "key-2")
		first, second := jose.JSONWebKey{Key: e.key.signer.Public(), KeyID: "key-1", Use: "jwt-svid"},
			jose.JSONWebKey{Key: last.signer.Public(), KeyID: "key-2", Use: "jwt-svid"}
		unknown := object{"kty": "UNKNOWN", "use": "jwt-svid", "kid": "key-x", "k": "AQAB"}
		set := must(json.Marshal(object{"keys": []any{first, unknown, second}}))
		e.agent.change(func() { e.agent.bundles = map[string][]byte{"spiffe://" + domain: set} })
		if err := e.accepts(last.sign(nil, claims(workload)), workload); err != nil {
			return err
		}
		return e.accepts(claim(nil)(e), workload)
	})
	bundleRow("JB-7", "an empty bundle", func(e *env, push push) error {
		key := newKey("ES256", "other-1")
		if err := push(map[string][]*jwtKey{domain: {}, other: {key}}, key, theirs); err != nil {
			return err
		}
		return e.rejectsNow(claim(nil)(e))
	})
	bundleRow("JB-8", "a federated trust domain", func(e *env, push push) error {
		key := newKey("ES256", "other-1")
		return push(map[string][]*jwtKey{domain: {e.key}, other: {key}}, key, theirs)
	})
}

// fetch calls the harness, and returns the requests that the agent received.
func fetch(e *env, audiences []string, id string) (*answer, []*api.JWTSVIDRequest, error) {
	before := len(e.agent.recorded("FetchJWTSVID"))
	a, err := e.post("/v1/jwt/fetch", object{"audience": audiences, "spiffe_id": id})
	var asked []*api.JWTSVIDRequest
	for _, c := range e.agent.recorded("FetchJWTSVID")[before:] {
		asked = append(asked, c.asked.(*api.JWTSVIDRequest))
	}
	return a, asked, err
}

func fetched(e *env, audiences []string, id, token string) error {
	a, asked, err := fetch(e, audiences, id)
	if err != nil {
		return err
	}
	if a.Status != "ok" || len(a.SVIDs) != 1 || a.SVIDs[0].Token != token {
		return fmt.Errorf("%s %s: %d tokens", a.Status, a.Message, len(a.SVIDs))
	}
	if len(asked) == 0 {
		return errors.New("no request to the agent")
	}
	for _, request := range asked {
		slices.Sort(request.Audience)
		if want := slices.Sorted(slices.Values(audiences)); !slices.Equal(request.Audience, want) {
			return fmt.Errorf("requested for %q, not %q", request.Audience, want)
		}
		if request.SpiffeId != id {
			return fmt.Errorf("requested of %q, not %q", request.SpiffeId, id)
		}
	}
	return nil
}

func fetchRows() {
	serve := func(e *env, id string, audiences []string) *api.JWTSVID {
		token := e.key.sign(nil, with(claims(id), object{"aud": audiences}))
		return &api.JWTSVID{SpiffeId: id, Svid: token}
	}
	for at, audiences := range [][]string{{audience}, {audience, "spiffe://" + domain + "/backend", "another"}} {
		add(fmt.Sprintf("JF-%d", at+1), fmt.Sprintf("%d audiences", len(audiences)), func(e *env) error {
			served := serve(e, workload, audiences)
			e.agent.change(func() { e.agent.tokens = []*api.JWTSVID{served} })
			return fetched(e, audiences, "", served.Svid)
		})
	}
	add("JF-3", "a SPIFFE ID", func(e *env) error {
		id := "spiffe://" + domain + "/other"
		served := []*api.JWTSVID{serve(e, workload, []string{audience}), serve(e, id, []string{audience})}
		e.agent.change(func() { e.agent.tokens = served })
		return fetched(e, []string{audience}, id, served[1].Svid)
	})
	add("JF-4", "PermissionDenied after a token", func(e *env) error {
		served := serve(e, workload, []string{audience})
		e.agent.change(func() { e.agent.tokens = []*api.JWTSVID{served} })
		if err := fetched(e, []string{audience}, "", served.Svid); err != nil {
			return err
		}
		e.agent.fail("FetchJWTSVID", codes.PermissionDenied, -1)
		a, _, err := fetch(e, []string{audience}, "")
		if err == nil && a.Status == "ok" {
			return errors.New("a token, although the agent denies them")
		}
		return err
	})
}

func endpointRows() {
	start := func(e *env) error {
		if err := e.start(readyIn); err != nil {
			return err
		}
		return e.presents(workload)
	}
	rows = append(rows, row{id: "EP-1", what: "the endpoint from the environment", starts: true, run: start})
	add("EP-2", "the security header on every call", func(e *env) error {
		if err := e.accepts(claim(nil)(e), workload); err != nil {
			return err
		}
		if _, _, err := fetch(e, []string{audience}, ""); err != nil {
			return err
		}
		methods := map[string]bool{}
		for _, c := range e.agent.recorded("") {
			methods[c.method] = true
			if !c.header {
				return fmt.Errorf("%s without the header", c.method)
			}
		}
		for _, method := range []string{"FetchX509SVID", "FetchJWTBundles", "FetchJWTSVID"} {
			if !methods[method] {
				return fmt.Errorf("%s was never called", method)
			}
		}
		return nil
	})
	rows = append(rows, row{id: "EP-3", what: "a TCP endpoint", starts: true, tcp: true, run: start})
	invalid := func(endpoint func(*env) string) func(*env) error {
		return func(e *env) error {
			err := e.startAt(endpoint(e), 3*time.Second)
			if !errors.Is(err, errNotReady) {
				return fmt.Errorf("ready with %s: %v", endpoint(e), err)
			}
			if calls := e.agent.recorded(""); len(calls) != 0 {
				return fmt.Errorf("%d calls by %s", len(calls), endpoint(e))
			}
			return start(e)
		}
	}
	rows = append(rows, row{id: "EP-4/unix-authority", what: "an authority", starts: true,
		run: invalid(func(e *env) string { return "unix://localhost" + e.socket })})
	rows = append(rows, row{id: "EP-4/tcp-path", what: "a path", starts: true, tcp: true,
		run: invalid(func(e *env) string { return e.endpoint + "/foo" })})
	for at, code := range []codes.Code{codes.Unavailable, codes.PermissionDenied} {
		id := fmt.Sprintf("EP-%d", at+5)
		rows = append(rows, row{id: id, what: "retries after " + code.String(), starts: true, run: func(e *env) error {
			e.agent.fail("FetchX509SVID", code, 3)
			if err := e.start(30 * time.Second); err != nil {
				return err
			}
			if err := e.presents(workload); err != nil {
				return err
			}
			calls := e.agent.recorded("FetchX509SVID")
			last := slices.IndexFunc(calls, func(c call) bool { return c.code == codes.OK })
			if last < 3 {
				return fmt.Errorf("ready after %d failed calls", last)
			}
			if mean := calls[last].at.Sub(calls[0].at) / time.Duration(last); mean < 50*time.Millisecond {
				return fmt.Errorf("a retry every %s", mean)
			}
			return nil
		}})
	}
	rows = append(rows, row{id: "EP-7", what: "no retries after InvalidArgument", starts: true, run: func(e *env) error {
		for _, method := range []string{"FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles"} {
			e.agent.fail(method, codes.InvalidArgument, -1)
		}
		if err := e.start(5 * time.Second); !errors.Is(err, errNotReady) {
			return fmt.Errorf("ready: %v", err)
		}
		perMethod := map[string]int{}
		for _, c := range e.agent.recorded("") {
			perMethod[c.method]++
		}
		if len(perMethod) == 0 {
			return errors.New("no calls at all")
		}
		for method, calls := range perMethod {
			if calls > 2 {
				return fmt.Errorf("%d calls of %s", calls, method)
			}
		}
		e.agent.recover()
		return start(e)
	}})
	rows = append(rows, row{id: "EP-8", what: "a socket that appears later", starts: true, late: true, run: func(e *env) error {
		listening := make(chan error, 1)
		go func() { time.Sleep(2 * time.Second); listening <- e.listen() }()
		err := e.start(30 * time.Second)
		if failed := <-listening; failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
		return e.presents(workload)
	}})
}

func workloadRows() {
	add("WA-1", "a stream that is closed", func(e *env) error {
		if err := e.presents(workload); err != nil {
			return err
		}
		before := len(e.agent.recorded("FetchX509SVID"))
		e.agent.endStreams(codes.Unavailable)
		err := eventually(15*time.Second, func() error {
			if len(e.agent.recorded("FetchX509SVID")) == before {
				return errors.New("no new stream")
			}
			return nil
		})
		if err != nil {
			return err
		}
		id := "spiffe://" + domain + "/b"
		e.serveX509(e.ca.issue(id))
		return e.presents(id)
	})
	fields := map[string]func(*api.X509SVIDResponse){
		"svids":         func(m *api.X509SVIDResponse) { m.Svids = nil },
		"spiffe_id":     func(m *api.X509SVIDResponse) { m.Svids[0].SpiffeId = "" },
		"x509_svid":     func(m *api.X509SVIDResponse) { m.Svids[0].X509Svid = nil },
		"x509_svid_key": func(m *api.X509SVIDResponse) { m.Svids[0].X509SvidKey = nil },
		"bundle":        func(m *api.X509SVIDResponse) { m.Svids[0].Bundle = nil },
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		empty := fields[field]
		add("WA-2/"+field, "an empty "+field, func(e *env) error {
			if err := e.presents(workload); err != nil {
				return err
			}
			bad := "spiffe://" + domain + "/bad"
			message := &api.X509SVIDResponse{Svids: []*api.X509SVID{e.ca.issue(bad).proto(e.ca)}}
			empty(message)
			e.agent.change(func() { e.agent.x509 = proto.Clone(message).(*api.X509SVIDResponse) })
			probe := e.ca.issue("spiffe://" + domain + "/probe")
			for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(poll) {
				if id, _, err := e.probe(probe); err != nil || id != workload {
					return fmt.Errorf("presents %q: %v", id, err)
				}
			}
			last := "spiffe://" + domain + "/last"
			e.serveX509(e.ca.issue(last))
			return e.presents(last)
		})
	}
	add("WA-3", "the first SVID", func(e *env) error {
		a, b := e.ca.issue("spiffe://"+domain+"/a"), e.ca.issue("spiffe://"+domain+"/b")
		e.serveX509(a, b)
		if err := e.presents(a.id); err != nil {
			return err
		}
		e.serveX509(b, a)
		return e.presents(b.id)
	})
	add("WA-4", "PermissionDenied withdraws", func(e *env) error {
		if err := e.presents(workload); err != nil {
			return err
		}
		e.agent.fail("FetchX509SVID", codes.PermissionDenied, -1)
		e.agent.endStreams(codes.PermissionDenied)
		probe := e.ca.issue("spiffe://" + domain + "/probe")
		return eventually(5*time.Second, func() error {
			if id, _, err := e.probe(probe); err == nil && id == workload {
				return errors.New("the SVID is presented still")
			}
			return nil
		})
	})
}

// x509Rows use the X.509 port once in each role.
func x509Rows() {
	peer := "spiffe://" + domain + "/peer"
	add("XV-1/server", "a valid client", func(e *env) error {
		_, line, err := e.probe(e.ca.issue(peer))
		if err == nil && line != peer {
			err = fmt.Errorf("the harness wrote %q", line)
		}
		return err
	})
	add("XV-5/server", "a client of an unknown CA", func(e *env) error {
		if _, line, err := e.probe(e.ca.issue(peer)); err != nil || line != peer {
			return fmt.Errorf("positive control: %q, %v", line, err)
		}
		if _, line, _ := e.probe(newAuthority().issue(peer)); line != "" {
			return errors.New("accepted")
		}
		return nil
	})
	add("XV-1/client", "a valid server", func(e *env) error { return dial(e, e.ca.issue(peer), "ok") })
	add("XV-5/client", "a server of an unknown CA", func(e *env) error {
		if err := dial(e, e.ca.issue(peer), "ok"); err != nil {
			return err
		}
		return dial(e, newAuthority().issue(peer), "rejected")
	})
}

func dial(e *env, server *svid, status string) error {
	config := &tls.Config{Certificates: []tls.Certificate{server.tls()}, ClientAuth: tls.RequireAnyClientCert}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	defer listener.Close()
	presented := make(chan []byte, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		if tls := connection.(*tls.Conn); tls.Handshake() == nil {
			presented <- tls.ConnectionState().PeerCertificates[0].Raw
			tls.SetReadDeadline(time.Now().Add(5 * time.Second))
			tls.Read(make([]byte, 1))
		}
	}()
	a, err := e.post("/v1/x509/dial", object{"address": listener.Addr().(*net.TCPAddr).String()})
	if err != nil {
		return err
	}
	if a.Status != status {
		return fmt.Errorf("%s, not %s: %s", a.Status, status, a.Message)
	}
	if status == "ok" {
		if a.SPIFFEID != server.id {
			return fmt.Errorf("the server's ID is %q", a.SPIFFEID)
		}
		if own := e.agent.x509.Svids[0].X509Svid; !bytes.Equal(<-presented, own) {
			return errors.New("another client certificate than the SVID")
		}
	}
	return nil
}
