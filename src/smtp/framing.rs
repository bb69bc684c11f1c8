//! Lines, DATA and BDAT: the only place that looks for line ends.
