"""The same contract on Ray Serve: archives served by replicas over a cluster. Needs ``pip install 'convlens[ray]'``.

``app`` builds the application from archives; ``ingress`` takes requests over HTTP and gRPC and hands each to a replica
of ``replica``, where the archive's own handler answers it as it does in a worker of TorchServe.
"""
