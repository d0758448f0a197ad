{{- define "slipway.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* `-controller` and `-staging` still fit behind it. */}}
{{- define "slipway.fullname" -}}
{{- $name := include "slipway.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "slipway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: slipway
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "slipway.controller.selector" -}}
app.kubernetes.io/name: {{ include "slipway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "slipway.staging.selector" -}}
app.kubernetes.io/name: {{ include "slipway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: staging
{{- end }}

{{- define "slipway.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "slipway.fullname" .) }}
{{- else }}
{{- required "serviceAccount.create is false: name an existing one in serviceAccount.name" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Cluster-wide objects of two releases stay apart. */}}
{{- define "slipway.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "slipway.fullname" .) }}
{{- end }}

{{- define "slipway.image" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "slipway.controller.image" -}}
{{- include "slipway.image" (dict "repository" .Values.image.repository "digest" .Values.image.digest "tag" (.Values.image.tag | default .Chart.AppVersion)) }}
{{- end }}

{{/* Where build and push pods reach the operator. */}}
{{- define "slipway.controller.url" -}}
{{- printf "http://%s.%s.svc.%s:8080" (include "slipway.fullname" .) .Release.Namespace .Values.clusterDomain }}
{{- end }}

{{- define "slipway.staging.fullname" -}}
{{- printf "%s-staging" (include "slipway.fullname" .) }}
{{- end }}

{{/* host:port by which pods and the operator reach staging. */}}
{{- define "slipway.staging.registry" -}}
{{- if .Values.staging.enabled }}
{{- printf "%s.%s.svc.%s:%v" (include "slipway.staging.fullname" .) .Release.Namespace .Values.clusterDomain .Values.staging.service.port }}
{{- else }}
{{- required "staging.enabled is false: name a registry in staging.external.registry" .Values.staging.external.registry }}
{{- end }}
{{- end }}

{{- define "slipway.staging.plainHTTP" -}}
{{- or .Values.staging.enabled .Values.staging.external.plainHTTP }}
{{- end }}

{{- define "slipway.staging.httpSecret" -}}
{{- with .Values.staging.httpSecret }}
{{- .existingSecret | default (ternary (include "slipway.staging.fullname" $) "" .create) }}
{{- end }}
{{- end }}

{{/* The Secret with the key of staging's tokens; empty where staging asks for none. */}}
{{- define "slipway.staging.tokenKey" -}}
{{- if .Values.staging.enabled }}
{{- with .Values.staging.tokens }}
{{- if .enabled }}{{ .existingSecret | default (printf "%s-token" (include "slipway.staging.fullname" $)) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Pod Security "restricted", for pods and for their containers. */}}
{{- define "slipway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "slipway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where a pod may run, from the values of its component. */}}
{{- define "slipway.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
