//! TCP, STARTTLS, the demand judged, EHLO, AUTH.
