"""Ctrl-C works in the tests and in what they start: a shell starts what a script puts behind `&` with SIGINT ignored,
and every child inherits that."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
