// Rows of the public conformance suite for SPIFFE SDKs, for programs that implement its harness contract
// v1. The suite itself runs in .github/workflows/conformance.yml. This program has its JWT, EP and WA
// rows, and one row for each use of the X.509 port.
//
//	conformance <name> <harness> [arguments…]   one line per row: ok|FAIL <name>-<row> <what>
//	conformance harness                         runs a harness of go-spiffe
//
// With `--fails ROW,…` these rows must fail.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

const (
	domain   = "test.example.org"
	audience = "conformance"
	workload = "spiffe://" + domain + "/workload"
)

type row struct {
	id, what string
	// The row starts the harness itself.
	starts bool
	tcp    bool
	late   bool
	run    func(*env) error
}

var rows []row

// runRow runs a row. A panic fails the row.
func runRow(r row, command []string) (failure error) {
	defer func() {
		if problem := recover(); problem != nil {
			failure = fmt.Errorf("the row panicked: %v", problem)
		}
	}()
	e, err := newEnv(r, command)
	if err != nil {
		return err
	}
	defer e.close()
	if !r.starts {
		if err := e.start(readyIn); err != nil {
			return err
		}
	}
	return r.run(e)
}

func main() {
	fails := flag.String("fails", "", "rows that must fail, separated by commas")
	flag.Parse()
	if flag.Arg(0) == "harness" {
		serveHarness()
		return
	}
	if flag.NArg() < 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance [--fails ROW,…] <name> <harness> [arguments…]")
		os.Exit(2)
	}
	name, command := flag.Arg(0), flag.Args()[1:]
	expected := map[string]bool{}
	for _, id := range strings.FieldsFunc(*fails, func(c rune) bool { return c == ',' }) {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.id == id }) {
			fmt.Fprintf(os.Stderr, "unknown row %q in --fails\n", id)
			os.Exit(2)
		}
		expected[id] = true
	}

	results := make([]error, len(rows))
	var wait sync.WaitGroup
	slots := make(chan struct{}, 6)
	for at, r := range rows {
		wait.Add(1)
		go func() {
			defer wait.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			results[at] = runRow(r, command)
		}()
	}
	wait.Wait()
	failed := false
	for at, r := range rows {
		err := results[at]
		if expected[r.id] {
			if err == nil {
				err = errors.New("passes, but is listed in --fails")
			} else {
				fmt.Printf("ok %s-%s %s: fails, as recorded (%v)\n", name, r.id, r.what, err)
				continue
			}
		}
		if err != nil {
			failed = true
			fmt.Printf("FAIL %s-%s %s: %v\n", name, r.id, r.what, err)
			continue
		}
		fmt.Printf("ok %s-%s %s\n", name, r.id, r.what)
	}
	if failed {
		os.Exit(1)
	}
}
