//! What the process may do: its user, once the ports are bound, its descriptors, the mode of its files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask as set_umask};
use nix::unistd::{User, getegid, geteuid, initgroups, setgid, setuid};

/// Takes all the descriptors that the system allows: every connection is one, and the usual soft limit of 1024 is for
/// programs that use `select`.
pub(super) fn take_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit of descriptors cannot be raised");
    }
}

/// Files that we make are ours alone.
pub(super) fn umask() {
    set_umask(Mode::from_bits_truncate(0o077));
}

/// Becomes `name`, with its groups, and makes sure that there is no way back. Must run before any thread starts.
///
/// # Errors
/// What is in the way, in words.
pub(super) fn become_user(name: &str) -> Result<(), String> {
    umask();
    let user = User::from_name(name)
        .map_err(|error| format!("cannot look it up: {error}"))?
        .ok_or("there is no such user on this machine")?;
    if geteuid() == user.uid {
        return Ok(());
    }
    if !geteuid().is_root() {
        return Err(format!("only root can; the daemon was started by uid {}", geteuid()));
    }
    let c_name = std::ffi::CString::new(name).map_err(|_| "its name has a NUL in it")?;
    initgroups(&c_name, user.gid).map_err(|error| format!("initgroups: {error}"))?;
    setgid(user.gid).map_err(|error| format!("setgid: {error}"))?;
    setuid(user.uid).map_err(|error| format!("setuid: {error}"))?;
    if geteuid() != user.uid || getegid() != user.gid || (!user.uid.is_root() && setuid(0.into()).is_ok()) {
        return Err("the system let root's rights stand".to_owned());
    }
    Ok(())
}
