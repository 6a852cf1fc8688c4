"""Runs the statements of its input on an SQLite file, whatever else writes there: python insert.py FILE."""

import sqlite3
import sys

connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
for statement in sys.stdin.read().split(";\n"):
    if statement.strip():
        connection.execute(statement)
connection.close()
