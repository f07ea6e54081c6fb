//! Tables of every writer: placeholder.
