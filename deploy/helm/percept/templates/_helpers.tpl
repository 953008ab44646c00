{{- define "percept.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "percept.fullname" -}}
{{- $name := include "percept.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "percept.selectorLabels" -}}
app.kubernetes.io/name: {{ include "percept.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "percept.labels" -}}
{{ include "percept.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "percept.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "percept.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "percept.keysSecret" -}}
{{- if .Values.keys.existingSecret }}
{{- .Values.keys.existingSecret }}
{{- else if .Values.keys.file }}
{{- printf "%s-keys" (include "percept.fullname" .) }}
{{- end }}
{{- end }}

{{/* A value of the configuration file. Whole numbers come from values as floating ones. */}}
{{- define "percept.toml" -}}
{{- if kindIs "slice" . -}}
[{{ range $at, $item := . }}{{ if $at }}, {{ end }}{{ include "percept.toml" $item }}{{ end }}]
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{ int64 . }}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{/* All of the configuration file. */}}
{{- define "percept.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config "host" "0.0.0.0" }}
{{- $_ := set $config "port" 8000 }}
{{- if .Values.models }}
{{- $_ := set $config "model" .Values.models }}
{{- end }}
{{- if include "percept.keysSecret" . }}
{{- $_ := set $config "keys" "/etc/percept/keys/keys.toml" }}
{{- else }}
{{- $_ := set $config "insecure_no_keys" true }}
{{- end }}
{{- if .Values.audit.enabled }}
{{- $_ := set $config "audit" "/var/lib/percept/audit" }}
{{- end }}
{{- if eq (int .Values.gpu.count) 0 }}
{{- $_ := set $config "device" (get $config "device" | default "cpu") }}
{{- end }}
{{- if or .Values.metrics.vllmNames .Values.inferencePool.enabled }}
{{- $_ := set $config "vllm_metrics" true }}
{{- end }}
{{- range $name, $value := $config }}
{{ $name }} = {{ include "percept.toml" $value }}
{{- end }}
{{- end }}

{{/* What would not work, told before anything is made. */}}
{{- define "percept.check" -}}
{{- $keys := .Values.keys }}
{{- if not (or $keys.existingSecret $keys.file $keys.insecureNoKeys) }}
{{- fail "who may ask? Give keys.existingSecret or keys.file (percept keys add NAME --keys keys.toml), or set keys.insecureNoKeys=true" }}
{{- end }}
{{- if and $keys.insecureNoKeys (or $keys.existingSecret $keys.file) }}
{{- fail "keys.insecureNoKeys=true and keys are given: which is meant?" }}
{{- end }}
{{- $most := ternary (int .Values.replicaCount) (int .Values.autoscaling.maxReplicas) (eq .Values.autoscaling.mode "none") }}
{{- if gt $most 1 }}
{{- if .Values.audit.enabled }}
{{- fail "audit.enabled=true is for one replica: the log is a chain, which one server writes" }}
{{- end }}
{{- if and .Values.persistence.enabled (not .Values.persistence.existingClaim) }}
{{- if not (or (has "ReadWriteMany" .Values.persistence.accessModes) (has "ReadOnlyMany" .Values.persistence.accessModes)) }}
{{- fail (printf "%d replicas share one volume of checkpoints: set persistence.accessModes={ReadWriteMany}, or persistence.enabled=false so that each fetches its own" $most) }}
{{- end }}
{{- end }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- range $name := list "host" "port" "model" "keys" "insecure_no_keys" "audit" }}
{{- if hasKey $.Values.config $name }}
{{- fail (printf "config.%s is set by the chart: see its own values" $name) }}
{{- end }}
{{- end }}
{{- end }}
