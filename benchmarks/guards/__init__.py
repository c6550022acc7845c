"""Guards against getting slower: `make bench-guard`."""
