//! System tests of Bulkhead; the guests are in `src/bin`.
#![no_std]
