//! Receive and send connectors: from tables to checked values.
