//! luc-api
