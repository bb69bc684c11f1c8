//! A hybrid world in one process: CA, DNS, three servers and the relay between them.
