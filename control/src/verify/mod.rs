//! Are the tables right? Against case files: flows with the verdict that is expected of each ([`cases`],
//! [`check`]).

pub mod cases;
pub mod check;
