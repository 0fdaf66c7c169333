"""Runs tower-spiffe against py-spiffe, PyJWT, grpcio and http.client, in both directions.

Prints one line per row: `ok|FAIL <row> <what>`. INTEROP_DRIVER is the path of the driver,
INTEROP_CASES the path of the table of tokens.
"""

import logging
import sys

import agent_rows
import harness
import server_rows
import source_rows
import token_rows

# py-spiffe logs an error for each stream that a row breaks.
logging.disable(logging.CRITICAL)

with harness.Driver() as driver:
    token_rows.run(driver)
    agent_rows.run(driver)
    server_rows.run(driver)
    source_rows.run(driver)
sys.exit(harness.failed)
