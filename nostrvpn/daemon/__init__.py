"""The daemon: the thin asyncio shell around the pure node.

Decides nothing about domain state; it feeds events in, carries effects out, keeps the kernel
reconciled and ends in order. Open ``loop.py`` first.

- ``main``       from options to a running daemon and its exit code
- ``loop``       inbox -> node.step -> effects -> deadline
- ``reconcile``  the kernel's observe -> diff -> apply, in one worker thread
- ``supervise``  named tasks whose failure ends the daemon loudly
"""
