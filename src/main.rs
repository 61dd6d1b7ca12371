//! The `vmscope` program: parse, start, exit code.

fn main() {}
