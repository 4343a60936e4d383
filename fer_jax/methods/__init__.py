"""Methods for unseen domains: MixStyle, CORAL, SAM, SWAD, test-time adaptation."""
