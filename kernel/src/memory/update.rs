//! Batches of page-table updates, pin and unpin, continuation of long walks; carries out what [`super::validate`] allowed.
