"""The two sides of `transport`: the product's bulk streams, and sockets with TLS and nothing else. Both move and add the same bytes."""
