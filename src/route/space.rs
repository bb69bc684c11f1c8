//! Address spaces: most specific, then cheapest, then first in the file.
