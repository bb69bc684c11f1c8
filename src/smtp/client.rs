//! The sending side of one SMTP session, without sockets, clocks or tasks.
