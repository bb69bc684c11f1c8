//! One recipient: accepted domain, directory, forwards, groups, aliases, loops, then matrix or address space.
