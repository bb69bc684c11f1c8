//! SASL PLAIN and LOGIN as a client says them (RFC 4954, 4616). The server side comes with client submission.
