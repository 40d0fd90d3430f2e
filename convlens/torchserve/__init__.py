"""Around TorchServe: the Java it runs on, its configuration, its process, and the archives it serves.

Nothing here imports ``ts``: the server is a separate program, found and started, never a library.
"""
