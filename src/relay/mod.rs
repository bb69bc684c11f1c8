//! The only module that knows all stages: takes messages in, carries results onward.

pub mod schedule;
