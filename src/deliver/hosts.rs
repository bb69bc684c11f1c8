//! Smart hosts or MX, in order, spread among equals.
