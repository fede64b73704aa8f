{{/* What all objects carry. */}}
{{- define "kerf.labels" -}}
app.kubernetes.io/name: kerf
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "kerf.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The run directory is compiled into the shim: it is no value. */}}
{{- define "kerf.runDir" -}}/run/kerf{{- end }}

{{/* Where kerfd sees the node's driver root. */}}
{{- define "kerf.driverRoot" -}}/driver-root{{- end }}

{{- define "kerf.config" -}}
runDir: {{ include "kerf.runDir" . }}
stateDir: {{ .Values.stateDir }}
root: {{ if .Values.simulate }}/{{ else }}{{ include "kerf.driverRoot" . }}{{ end }}
leases: {{ .Values.leases }}
holdGates: {{ .Values.holdGates }}
drainTimeout: {{ .Values.drainTimeout }}
logLevel: {{ .Values.logLevel }}
socketMode: "0660" # slices of a node are the scheduler's to give, not any local user's to take
monitor:
  enabled: {{ .Values.monitor.enabled }}
  profile: {{ .Values.monitor.profile }}
  mode: {{ .Values.monitor.mode }}
  interval: {{ .Values.monitor.interval }}
  {{- if .Values.monitor.nodeCondition }}
  nodeCondition: true
  {{- end }}
  probes: {tracepoints: {{ and .Values.monitor.probes.enabled (not .Values.simulate) }}, calls: {{ and .Values.monitor.probes.calls (not .Values.simulate) }}}
{{- with .Values.cards }}
cards:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.swap.hostMemory }}
swap:
  hostMemory: {{ . }}
{{- end }}
kubernetes:
  enabled: true
  kubeletDir: {{ .Values.kubeletDir }}
  cdiDir: {{ .Values.cdiDir }}
  hostDir: {{ .Values.hostDir }}
{{- if not .Values.simulate }}
  rootOnHost: {{ .Values.driverRoot }}
{{- end }}
  dra: {{ .Values.dra.enabled }}
  devicePlugin:
    enabled: {{ .Values.devicePlugin.enabled }}
    memory: {{ .Values.devicePlugin.memory }}
    cores: {{ .Values.devicePlugin.cores }}
{{- if .Values.nics.enabled }}
  nics:
    enabled: true
    standIn: {{ ne .Values.simulate "" }}
    nriSocket: {{ .Values.nics.nriSocket }}
    {{- with .Values.nics.pfs }}
    pfs: {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- if .Values.storage.enabled }}
storage:
  enabled: true
  provisioner: {{ .Values.storage.provisioner }}
  pools: {{- toYaml .Values.storage.pools | nindent 4 }}
{{- end }}
{{- with .Values.simulate }}
simulate:
  profile: {{ . }}
{{- end }}
{{- end }}

{{/* Rights of a program that needs none. */}}
{{- define "kerf.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
