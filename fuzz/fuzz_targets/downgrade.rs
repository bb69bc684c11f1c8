#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/targets/mod.rs"]
mod targets;

fuzz_target!(|data: &[u8]| targets::run("downgrade", data));
