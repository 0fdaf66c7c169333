"""Runs tower-spiffe against py-spiffe, PyJWT, grpcio and http.client, both ways.

Prints one line per row: `ok|FAIL <row> <what>`. INTEROP_DRIVER names the driver, INTEROP_CASES the
table of tokens.
"""

import logging
import sys

import agent_rows
import harness
import server_rows
import source_rows
import token_rows

# py-spiffe logs each error of a stream that we break.
logging.disable(logging.CRITICAL)

with harness.Driver() as driver:
    token_rows.run(driver)
    agent_rows.run(driver)
    server_rows.run(driver)
    source_rows.run(driver)
sys.exit(harness.failed)
