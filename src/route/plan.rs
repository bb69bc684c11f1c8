//! Bifurcation: recipients with equal connector and hop share one copy.
