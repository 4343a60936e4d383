"""Methods for unseen domains: CORAL, SAM, SWAD, test-time adaptation."""
