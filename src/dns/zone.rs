//! A small authoritative server for a zone written in the program: the demo and the tests have their DNS here.
