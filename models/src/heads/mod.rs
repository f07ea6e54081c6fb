//! Networks on top of the backbone: the DINO projection head and the linear classifier.
