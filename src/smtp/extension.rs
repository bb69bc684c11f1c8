//! What we offer in reply to EHLO, and what a server offered us.
