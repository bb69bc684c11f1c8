//! What a start finds; what goes to corrupt/.
