// Runs tower-spiffe against go-spiffe, go-jose, grpc-go and net/http, in both directions.
//
// Prints one line per row: `ok|FAIL <row> <what>`. INTEROP_DRIVER is the path of the driver,
// INTEROP_CASES the path of the table of tokens.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	domain   = "example.org"
	web      = "spiffe://example.org/web"
	ops      = "spiffe://example.org/ops"
	audience = "spiffe://example.org/reports"
	patience = 10 * time.Second
)

type object = map[string]any

var failed bool

func main() {
	driver, err := startDriver()
	if err != nil {
		fmt.Fprintln(os.Stderr, "the driver does not start:", err)
		os.Exit(1)
	}
	defer driver.close()
	cases, err := readCases()
	if err != nil {
		fmt.Fprintln(os.Stderr, "the table of tokens is unreadable:", err)
		os.Exit(1)
	}
	tokenRows(driver, cases)
	signedByGo(driver)
	for _, transport := range []string{"unix", "tcp"} {
		agentRows(driver, transport)
	}
	rawAgentRows(driver)
	serverRows(driver, cases)
	clientRows(driver)
	sourceRows(driver)
	federationRows(driver)
	if failed {
		driver.close()
		os.Exit(1)
	}
}

// row runs one row and prints its line.
func row(name, what string, check func() error) {
	err := check()
	if err != nil {
		failed = true
		text := strings.ReplaceAll(err.Error(), "\n", " ")
		fmt.Printf("FAIL %s %s: %s\n", name, what, text)
		return
	}
	fmt.Printf("ok %s %s\n", name, what)
}

// until polls a condition until it holds.
func until(condition func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func withDeadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

func equal[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, expected %v", what, got, want)
	}
	return nil
}

// tokenCase is one entry of cases.json.
type tokenCase struct {
	Case     string `json:"case"`
	Spec     object `json:"spec"`
	Rejected string `json:"rejected"`
	// The peers whose result differs from ours.
	Differs map[string]string `json:"differs"`
}

func (c tokenCase) acceptedBy(peer string) bool {
	_, differs := c.Differs[peer]
	return (c.Rejected == "") != differs
}

func readCases() ([]tokenCase, error) {
	text, err := os.ReadFile(os.Getenv("INTEROP_CASES"))
	if err != nil {
		return nil, err
	}
	var cases []tokenCase
	if err := json.Unmarshal(text, &cases); err != nil {
		return nil, err
	}
	if len(cases) == 0 {
		return nil, errors.New("the table of tokens is empty")
	}
	return cases, nil
}

type driver struct {
	mutex sync.Mutex
	in    io.WriteCloser
	out   *bufio.Reader
	child *exec.Cmd
}

func startDriver() (*driver, error) {
	child := exec.Command(os.Getenv("INTEROP_DRIVER"))
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &driver{in: in, out: bufio.NewReader(out), child: child}, child.Start()
}

func (d *driver) close() {
	d.in.Close()
	d.child.Wait()
}

// do runs a command of the driver.
func (d *driver) do(command string, arguments object) (object, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	line := object{"do": command}
	for name, value := range arguments {
		line[name] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		return nil, err
	}
	if _, err := d.in.Write(append(text, '\n')); err != nil {
		return nil, err
	}
	text, err = d.out.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var answer object
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	if problem, is := answer["error"].(string); is {
		return nil, fmt.Errorf("driver: %s: %s", command, problem)
	}
	return answer, nil
}

// must runs a command that the rows depend on, and panics if it fails.
func (d *driver) must(command string, arguments object) object {
	answer, err := d.do(command, arguments)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		d.close()
		os.Exit(1)
	}
	return answer
}

func (d *driver) token(issuer, id, audience string, spec object) (string, error) {
	answer, err := d.do("token", object{"issuer": issuer, "id": id, "audience": audience, "spec": spec})
	if err != nil {
		return "", err
	}
	return answer["token"].(string), nil
}

func (d *driver) federate(agent, trustDomain string) error {
	_, err := d.do("federate", object{"agent": agent, "trust_domain": trustDomain})
	return err
}

func (d *driver) change(agent, what string, arguments object) error {
	all := object{"agent": agent, "what": what}
	for name, value := range arguments {
		all[name] = value
	}
	_, err := d.do("change", all)
	return err
}
