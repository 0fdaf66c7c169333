"""Rows and the driver, for the programs in this folder."""

import json
import os
import subprocess
import time

DOMAIN = "example.org"
WEB = "spiffe://example.org/web"
OPS = "spiffe://example.org/ops"
AUDIENCE = "spiffe://example.org/reports"
ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"]
PATIENCE = 10

failed = False


def row(name, what, check):
    """Runs one row and prints its line."""
    global failed
    try:
        check()
    except Exception as error:  # Any exception of a peer is a failure of the row.
        failed = True
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"FAIL {name} {what}: {text}", flush=True)
        return
    print(f"ok {name} {what}", flush=True)


def equal(what, got, want):
    if got != want:
        raise AssertionError(f"{what} is {got!r}, expected {want!r}")


def raises(call):
    """Returns what the call raises."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("no error, expected one")


def until(condition):
    """Polls a condition until it holds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return condition()
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def read_cases():
    with open(os.environ["INTEROP_CASES"], encoding="utf-8") as file:
        cases = json.load(file)
    assert cases
    return cases


def accepted_by(case, peer):
    return ("rejected" not in case) != (peer in case.get("differs", {}))


class Driver:
    """The driver, which runs tower-spiffe, as a child process."""

    def __init__(self):
        self.child = subprocess.Popen(
            [os.environ["INTEROP_DRIVER"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.wait(PATIENCE)

    def do(self, command, **arguments):
        line = json.dumps({"do": command, **arguments}) + "\n"
        self.child.stdin.write(line.encode())
        self.child.stdin.flush()
        answer = json.loads(self.child.stdout.readline())
        if isinstance(answer.get("error"), str):
            raise RuntimeError(f"driver: {command}: {answer['error']}")
        return answer

    def token(self, issuer, spec=None, id=WEB, audience=AUDIENCE):
        return self.do("token", issuer=issuer, id=id, audience=audience, spec=spec or {})["token"]

    def change(self, agent, what, **arguments):
        return self.do("change", agent=agent, what=what, **arguments)

    def all_algorithms(self, issuer):
        """Makes the issuer create a key for each algorithm."""
        for algorithm in ALGORITHMS:
            self.token(issuer, {"algorithm": algorithm})

    def validate(self, token, **keys):
        return self.do("validate", trust_domain=DOMAIN, audience=AUDIENCE, token=token, **keys)
