//! Files, directories, syncing many messages at once.
