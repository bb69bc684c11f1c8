//! The command line: prints and asks; decides nothing.
