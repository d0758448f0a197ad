//go:build tools

// Package tools pins the engine whose archives are read in tests.
package tools

import (
	_ "github.com/moby/moby/v2/cmd/dockerd"
)
