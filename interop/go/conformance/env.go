package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	api "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

const (
	readyIn  = 20 * time.Second
	updateIn = 10 * time.Second
	poll     = 50 * time.Millisecond
)

// env has the parts of one row: an agent with a certificate authority and a key, and a harness.
type env struct {
	agent    *agent
	ca       *authority
	key      *jwtKey
	endpoint string
	socket   string
	folder   string
	command  []string
	process  *exec.Cmd
	ended    chan struct{}
	stderr   *tail
	x509     string
	control  string
}

func newEnv(r row, command []string) (*env, error) {
	folder, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return nil, err
	}
	e := &env{folder: folder, command: command, socket: filepath.Join(folder, "agent.sock")}
	e.ca = newAuthority()
	e.key = newKey("ES256", "key-1")
	e.agent = &agent{changed: make(chan struct{}), faults: map[string]*fault{}}
	e.serveX509(e.ca.issue(workload))
	e.serve(map[string][]*jwtKey{domain: {e.key}})
	e.agent.tokens = []*api.JWTSVID{{SpiffeId: workload, Svid: e.key.sign(nil, claims(workload))}}
	e.endpoint = "unix://" + e.socket
	if r.tcp {
		address, err := e.agent.listen("tcp", "127.0.0.1:0")
		e.endpoint = "tcp://" + address
		return e, err
	}
	if !r.late {
		err = e.listen()
	}
	return e, err
}

func (e *env) listen() error {
	_, err := e.agent.listen("unix", e.socket)
	return err
}

func (e *env) close() {
	e.stop()
	if e.agent.server != nil {
		e.agent.server.Stop()
	}
	os.RemoveAll(e.folder)
}

// serve streams the keys of these trust domains, and nothing else.
func (e *env) serve(keys map[string][]*jwtKey) {
	bundles := map[string][]byte{}
	for name, keys := range keys {
		bundles["spiffe://"+name] = jwks(keys...)
	}
	e.agent.change(func() { e.agent.bundles = bundles })
}

func (e *env) serveX509(svids ...*svid) {
	message := &api.X509SVIDResponse{}
	for _, s := range svids {
		message.Svids = append(message.Svids, s.proto(e.ca))
	}
	e.agent.change(func() { e.agent.x509 = message; e.agent.x509Bundle = e.ca.certificate.Raw })
}

// tail keeps the last bytes of the harness's log.
type tail struct {
	mutex sync.Mutex
	bytes []byte
}

func (t *tail) Write(more []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.bytes = append(t.bytes, more...)
	if excess := len(t.bytes) - 300; excess > 0 {
		t.bytes = t.bytes[excess:]
	}
	return len(more), nil
}

func (t *tail) String() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return strings.TrimSpace(string(t.bytes))
}

var errNotReady = errors.New("the harness did not become ready")

func (e *env) start(within time.Duration) error { return e.startAt(e.endpoint, within) }

// startAt starts or restarts the harness, and waits for its ports.
func (e *env) startAt(endpoint string, within time.Duration) error {
	e.stop()
	e.stderr = &tail{}
	process := exec.Command(e.command[0], e.command[1:]...)
	process.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+endpoint)
	process.Stderr = e.stderr
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := process.Start(); err != nil {
		return err
	}
	e.process, e.ended = process, make(chan struct{})
	ready, lines := make(chan map[string]string, 1), bufio.NewScanner(output)
	go func() {
		values := map[string]string{}
		for lines.Scan() {
			if lines.Text() == "READY" {
				ready <- values
			}
			if name, value, is := strings.Cut(lines.Text(), "="); is {
				values[name] = value
			}
		}
		process.Wait()
		close(e.ended)
	}()
	select {
	case values := <-ready:
		if values["SPIFFE_HARNESS_VERSION"] != "1" {
			return errors.New("the harness does not speak version 1 of the contract")
		}
		e.x509 = "127.0.0.1:" + values["SPIFFE_X509_PORT"]
		e.control = "http://127.0.0.1:" + values["SPIFFE_CONTROL_PORT"]
		return nil
	case <-e.ended:
		return fmt.Errorf("%w: it ended: %s", errNotReady, e.stderr)
	case <-time.After(within):
		return fmt.Errorf("%w within %s: %s", errNotReady, within, e.stderr)
	}
}

func (e *env) stop() {
	if e.process == nil {
		return
	}
	group := -e.process.Process.Pid
	syscall.Kill(group, syscall.SIGTERM)
	select {
	case <-e.ended:
	case <-time.After(5 * time.Second):
		syscall.Kill(group, syscall.SIGKILL)
		<-e.ended
	}
	e.process = nil
}

type answer struct {
	Status, Message string
	SPIFFEID        string `json:"spiffe_id"`
	SVIDs           []struct{ Token string }
}

// post calls the control port. The status and the envelope of a response must match.
func (e *env) post(path string, body any) (*answer, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 15 * time.Second}
	response, err := client.Post(e.control+path, "application/json", bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err = io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	a := &answer{}
	if err := json.Unmarshal(text, a); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", path, err, text)
	}
	codes := map[string]int{"ok": 200, "rejected": 422, "error": 500, "unsupported": 501}
	if codes[a.Status] != response.StatusCode {
		return nil, fmt.Errorf("%s: status %q with %d", path, a.Status, response.StatusCode)
	}
	return a, nil
}

func (e *env) validate(token string) (*answer, error) {
	a, err := e.post("/v1/jwt/validate", map[string]string{"token": token, "audience": audience})
	if err == nil && a.Status == "error" {
		err = fmt.Errorf("validate: %s", a.Message)
	}
	return a, err
}

// accepts waits until the token is accepted, because a bundle may still arrive.
func (e *env) accepts(token, id string) error {
	return eventually(updateIn, func() error {
		a, err := e.validate(token)
		if err != nil {
			return err
		}
		if a.Status != "ok" {
			return fmt.Errorf("a valid token is rejected: %s", a.Message)
		}
		if a.SPIFFEID != id {
			return fmt.Errorf("the SPIFFE ID is %q, not %q", a.SPIFFEID, id)
		}
		return nil
	})
}

func (e *env) rejectsNow(token string) error {
	a, err := e.validate(token)
	if err != nil {
		return err
	}
	if a.Status != "rejected" {
		return errors.New("accepted")
	}
	return nil
}

// rejects first checks that a valid token is accepted, so that a harness that rejects everything fails.
func (e *env) rejects(token string) error {
	if err := e.accepts(e.key.sign(nil, claims(workload)), workload); err != nil {
		return fmt.Errorf("positive control: %w", err)
	}
	return e.rejectsNow(token)
}

func eventually(within time.Duration, so func() error) error {
	for deadline := time.Now().Add(within); ; time.Sleep(poll) {
		err := so()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
