//go:build tools

// Package tools pins the official test of registries that the tests' own registry has to pass.
package tools

import (
	_ "github.com/opencontainers/distribution-spec/conformance"
)
