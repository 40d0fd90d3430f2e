"""What goes over the wire: parameters, requests, responses, and the forms they are encoded in. Imports no torch."""
